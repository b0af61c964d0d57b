from llama_index.embeddings.ollama import OllamaEmbedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"base_url": "http://127.0.0.1:8080"}
question_vector = OllamaEmbedding(model_name="me5_nano-query", **server).get_query_embedding(question)
passage_vectors = OllamaEmbedding(model_name="me5_nano-passage", **server).get_text_embedding_batch(passages)
