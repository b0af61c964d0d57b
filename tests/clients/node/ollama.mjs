import { Ollama } from "ollama";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const client = new Ollama({ host: "http://127.0.0.1:8080" });
const asked = await client.embed({ model: "me5_nano-query", input: question });
const stored = await client.embed({ model: "me5_nano-passage", input: passages });
const questionVector = asked.embeddings[0];
const passageVectors = stored.embeddings;
