from llama_index.embeddings.cohere import CohereEmbedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

# It takes names of Cohere's own models alone, and the server's model answers to any.
embedding = CohereEmbedding(model_name="embed-multilingual-v3.0", base_url="http://127.0.0.1:8080", api_key="none")
question_vector = embedding.get_query_embedding(question)
passage_vectors = embedding.get_text_embedding_batch(passages)
