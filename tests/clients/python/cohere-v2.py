import cohere

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = cohere.ClientV2(base_url="http://127.0.0.1:8080", api_key="none")
asked = client.embed(model="me5_nano", texts=[question], input_type="search_query", embedding_types=["float"])
stored = client.embed(model="me5_nano", texts=passages, input_type="search_document", embedding_types=["float"])
question_vector = asked.embeddings.float_[0]
passage_vectors = stored.embeddings.float_
