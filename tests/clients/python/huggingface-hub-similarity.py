from huggingface_hub import InferenceClient

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = InferenceClient(model="http://127.0.0.1:8080")
similarities = client.sentence_similarity(f"query: {question}", [f"passage: {passage}" for passage in passages])
