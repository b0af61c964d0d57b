from langchain_openai import OpenAIEmbeddings

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

# Without check_embedding_ctx_length=False it sends ids of OpenAI's vocabulary in place of texts.
server = {"base_url": "http://127.0.0.1:8080/v1", "api_key": "none", "check_embedding_ctx_length": False}
question_vector = OpenAIEmbeddings(model="me5_nano-query", **server).embed_query(question)
passage_vectors = OpenAIEmbeddings(model="me5_nano-passage", **server).embed_documents(passages)
