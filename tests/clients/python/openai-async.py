import asyncio

from openai import AsyncOpenAI

question = "How tall is the television tower?"
passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."]


async def embed():
    async with AsyncOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none") as client:
        return await asyncio.gather(
            client.embeddings.create(model="me5_nano", input=question, extra_body={"input_type": "query"}),
            client.embeddings.create(model="me5_nano", input=passages, extra_body={"input_type": "passage"}),
        )


asked, stored = asyncio.run(embed())
question_vector = asked.data[0].embedding
passage_vectors = [item.embedding for item in stored.data]
