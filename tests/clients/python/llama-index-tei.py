from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

embedding = TextEmbeddingsInference(
    model_name="me5_nano",
    base_url="http://127.0.0.1:8080",
    query_instruction="query: ",
    text_instruction="passage: ",
)
question_vector = embedding.get_query_embedding(question)
passage_vectors = embedding.get_text_embedding_batch(passages)
