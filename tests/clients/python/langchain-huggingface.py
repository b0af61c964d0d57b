from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

# Since 1.2 its model may not be a URL; the client that it calls may have one.
server = InferenceClient(model="http://127.0.0.1:8080")
queries = HuggingFaceEndpointEmbeddings(model="me5_nano", model_kwargs={"prompt_name": "query"})
documents = HuggingFaceEndpointEmbeddings(model="me5_nano", model_kwargs={"prompt_name": "passage"})
queries.client = documents.client = server
question_vector = queries.embed_query(question)
passage_vectors = documents.embed_documents(passages)
