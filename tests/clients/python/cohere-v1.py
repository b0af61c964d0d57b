import cohere

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = cohere.Client(base_url="http://127.0.0.1:8080", api_key="none")
question_vector = client.embed(model="me5_nano", texts=[question], input_type="search_query").embeddings[0]
passage_vectors = client.embed(model="me5_nano", texts=passages, input_type="search_document").embeddings
