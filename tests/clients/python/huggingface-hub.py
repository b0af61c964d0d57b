from huggingface_hub import InferenceClient

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]

client = InferenceClient(model="http://127.0.0.1:8080")
question_vector = client.feature_extraction(question, prompt_name="query")[0]
passage_vectors = client.feature_extraction(passages, prompt_name="passage")
