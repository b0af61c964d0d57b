from openai import OpenAI

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
question_vector = client.embeddings.create(model="me5_nano-query", input=question).data[0].embedding
answer = client.embeddings.create(model="me5_nano-passage", input=passages)
passage_vectors = [item.embedding for item in answer.data]
