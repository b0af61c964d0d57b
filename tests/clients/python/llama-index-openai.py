from llama_index.embeddings.openai import OpenAIEmbedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"api_base": "http://127.0.0.1:8080/v1", "api_key": "none"}
question_vector = OpenAIEmbedding(model_name="me5_nano-query", **server).get_query_embedding(question)
passage_vectors = OpenAIEmbedding(model_name="me5_nano-passage", **server).get_text_embedding_batch(passages)
