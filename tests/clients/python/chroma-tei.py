from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

embed = HuggingFaceEmbeddingServer(url="http://127.0.0.1:8080/embed")
question_vector = embed([f"query: {question}"])[0]
passage_vectors = embed([f"passage: {passage}" for passage in passages])
