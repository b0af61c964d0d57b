import chromadb
from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"api_base": "http://127.0.0.1:8080/v1", "api_key": "none"}
# A collection embeds questions by the function it embeds documents with, so they bring their own vectors.
queries = OpenAIEmbeddingFunction(model_name="me5_nano-query", **server)
documents = OpenAIEmbeddingFunction(model_name="me5_nano-passage", **server)
collection = chromadb.EphemeralClient().get_or_create_collection("facts", embedding_function=documents)
collection.upsert(ids=[str(number) for number in range(len(passages))], documents=passages)
question_vector = queries([question])[0]
found = collection.query(query_embeddings=[question_vector], n_results=1)["documents"][0][0]
passage_vectors = collection.get(include=["embeddings"])["embeddings"]
