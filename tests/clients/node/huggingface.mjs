import { InferenceClient } from "@huggingface/inference";

const question = "How tall is the television tower?";
const passages = ["Der Fernsehturm ist 368 Meter hoch.", "Rotterdam has the largest harbour in Europe."];

const client = new InferenceClient().endpoint("http://127.0.0.1:8080");
const [questionVector] = await client.featureExtraction({ inputs: [question], prompt_name: "query" });
const passageVectors = await client.featureExtraction({ inputs: passages, prompt_name: "passage" });
