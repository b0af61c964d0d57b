from langchain_cohere import CohereEmbeddings

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

embeddings = CohereEmbeddings(model="me5_nano", base_url="http://127.0.0.1:8080", cohere_api_key="none")
question_vector = embeddings.embed_query(question)
passage_vectors = embeddings.embed_documents(passages)
