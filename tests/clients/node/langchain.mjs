import { OpenAIEmbeddings } from "@langchain/openai";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const server = { apiKey: "none", configuration: { baseURL: "http://127.0.0.1:8080/v1" } };
const queries = new OpenAIEmbeddings({ model: "me5_nano-query", ...server });
const documents = new OpenAIEmbeddings({ model: "me5_nano-passage", ...server });
const questionVector = await queries.embedQuery(question);
const passageVectors = await documents.embedDocuments(passages);
