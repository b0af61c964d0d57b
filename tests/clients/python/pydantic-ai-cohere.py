from cohere import AsyncClientV2
from pydantic_ai import Embedder
from pydantic_ai.embeddings.cohere import CohereEmbeddingModel
from pydantic_ai.providers.cohere import CohereProvider

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = AsyncClientV2(base_url="http://127.0.0.1:8080", api_key="none")
embedder = Embedder(CohereEmbeddingModel("me5_nano", provider=CohereProvider(cohere_client=server)))
question_vector = embedder.embed_query_sync(question).embeddings[0]
passage_vectors = embedder.embed_documents_sync(passages).embeddings
