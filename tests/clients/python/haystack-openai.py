from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

server = {"api_base_url": "http://127.0.0.1:8080/v1", "api_key": Secret.from_token("none")}
question_vector = OpenAITextEmbedder(model="me5_nano-query", **server).run(question)["embedding"]
documents = [Document(content=passage) for passage in passages]
# Without raise_on_failure a refusal is logged, and its documents come back without vectors.
embedder = OpenAIDocumentEmbedder(model="me5_nano-passage", raise_on_failure=True, **server)
passage_vectors = [document.embedding for document in embedder.run(documents)["documents"]]
