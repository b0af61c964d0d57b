from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

of_questions = HuggingFaceEmbeddingServer(url="http://127.0.0.1:8080/embed?input_type=query")
of_passages = HuggingFaceEmbeddingServer(url="http://127.0.0.1:8080/embed?input_type=passage")
question_vector = of_questions([question])[0]
passage_vectors = of_passages(passages)
