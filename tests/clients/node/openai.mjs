import OpenAI from "openai";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const client = new OpenAI({ baseURL: "http://127.0.0.1:8080/v1", apiKey: "none" });
const asked = await client.embeddings.create({ model: "me5_nano-query", input: question });
const stored = await client.embeddings.create({ model: "me5_nano-passage", input: passages });
const questionVector = asked.data[0].embedding;
const passageVectors = stored.data.map((item) => item.embedding);
