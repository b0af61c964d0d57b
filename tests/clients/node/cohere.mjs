import { CohereClientV2 } from "cohere-ai";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const client = new CohereClientV2({ baseUrl: "http://127.0.0.1:8080", token: "none" });
const server = { model: "me5_nano", embeddingTypes: ["float"] };
const asked = await client.embed({ ...server, texts: [question], inputType: "search_query" });
const stored = await client.embed({ ...server, texts: passages, inputType: "search_document" });
const questionVector = asked.embeddings.float[0];
const passageVectors = stored.embeddings.float;
