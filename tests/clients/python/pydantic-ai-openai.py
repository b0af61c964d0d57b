from pydantic_ai import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.providers.openai import OpenAIProvider

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = OpenAIProvider(base_url="http://127.0.0.1:8080/v1", api_key="none")
queries = Embedder(OpenAIEmbeddingModel("me5_nano-query", provider=server))
documents = Embedder(OpenAIEmbeddingModel("me5_nano-passage", provider=server))
question_vector = queries.embed_query_sync(question).embeddings[0]
passage_vectors = documents.embed_documents_sync(passages).embeddings
