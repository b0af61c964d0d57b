from ollama import Client

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = Client(host="http://127.0.0.1:8080")
question_vector = client.embed(model="me5_nano-query", input=question).embeddings[0]
passage_vectors = client.embed(model="me5_nano-passage", input=passages).embeddings
