from langchain_ollama import OllamaEmbeddings

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"base_url": "http://127.0.0.1:8080"}
question_vector = OllamaEmbeddings(model="me5_nano-query", **server).embed_query(question)
passage_vectors = OllamaEmbeddings(model="me5_nano-passage", **server).embed_documents(passages)
