import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany } from "ai";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const me5 = createOpenAICompatible({ name: "me5", baseURL: "http://127.0.0.1:8080/v1" });
const asked = await embed({ model: me5.embeddingModel("me5_nano-query"), value: question });
const stored = await embedMany({ model: me5.embeddingModel("me5_nano-passage"), values: passages });
const questionVector = asked.embedding;
const passageVectors = stored.embeddings;
