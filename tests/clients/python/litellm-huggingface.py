from litellm import embedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

# Without an input_type it asks huggingface.co what the model is for.
server = {
    "model": "huggingface/me5_nano",
    "api_base": "http://127.0.0.1:8080",
    "api_key": "none",
    "input_type": "feature-extraction",
}
question_vector = embedding(input=[question], prompt_name="query", **server).data[0]["embedding"]
passage_vectors = [item["embedding"] for item in embedding(input=passages, prompt_name="passage", **server).data]
