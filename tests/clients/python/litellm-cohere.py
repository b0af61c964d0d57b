from litellm import embedding

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"model": "cohere/me5_nano", "api_base": "http://127.0.0.1:8080/v2/embed", "api_key": "none"}
question_vector = embedding(input=[question], input_type="search_query", **server).data[0]["embedding"]
stored = embedding(input=passages, input_type="search_document", **server)
passage_vectors = [item["embedding"] for item in stored.data]
