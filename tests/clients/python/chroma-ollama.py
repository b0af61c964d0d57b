from chromadb.utils.embedding_functions import OllamaEmbeddingFunction

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"url": "http://127.0.0.1:8080"}
question_vector = OllamaEmbeddingFunction(model_name="me5_nano-query", **server)([question])[0]
passage_vectors = OllamaEmbeddingFunction(model_name="me5_nano-passage", **server)(passages)
