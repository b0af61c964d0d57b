from litellm import embedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"api_base": "http://127.0.0.1:8080", "api_key": "none"}
question_vector = embedding(model="infinity/me5_nano-query", input=[question], **server).data[0]["embedding"]
stored = embedding(model="infinity/me5_nano-passage", input=passages, **server)
passage_vectors = [item["embedding"] for item in stored.data]
