// Runs a client's script a few times in one process and says what it came to, as run_python.py does. Run in the folder
// that holds node_modules: a script imports from where it lies.
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

async function outcome(source, number) {
  const file = resolve(`run-${process.pid}-${number}.mjs`);
  writeFileSync(file, `${source}\nexport { questionVector, passageVectors };\n`);
  const began = performance.now();
  let found;
  try {
    const { questionVector, passageVectors } = await import(pathToFileURL(file));
    found = { question_vector: [...questionVector], passage_vectors: passageVectors.map((vector) => [...vector]) };
  } catch (error) {
    found = { error: error.constructor.name, message: String(error.message) };
  } finally {
    rmSync(file);
  }
  return { ...found, seconds: (performance.now() - began) / 1000 };
}

const outcomes = [];
for (const [number, source] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  outcomes.push(await outcome(source, number));
}
writeFileSync(process.argv[2], JSON.stringify(outcomes));
