// LangChain.js's HuggingFaceInference: one model, as many calls at a time as the scenario says, default retries.
// Its one argument is what `foreign` in benchmarks/client.py describes.

"use strict";

const told = JSON.parse(process.argv[2]);

async function main() {
  const began = process.cpuUsage();
  const { HuggingFaceInference } = require("langchain/llms/hf");
  await HuggingFaceInference.imports(); // what it would load with the first call
  if (told.kind === "import") {
    return { figure: microseconds(began) / 1e6, figure_unit: "CPU seconds" };
  }
  if (told.kind === "import-memory") {
    return { figure: process.memoryUsage().rss / 1e6, figure_unit: "MB" };
  }
  if (told.kind !== "generate") {
    throw new Error(`${told.kind} is not measured`);
  }
  askHere(told.port);
  const llm = new HuggingFaceInference({ apiKey: "none", temperature: 0.7, maxTokens: 64 });
  await generate(llm, told.warm_up);
  return await measure(llm);
}

// The address of the hub is written into the library.
function askHere(port) {
  const real = globalThis.fetch;
  const theirs = "https://api-inference.huggingface.co";
  globalThis.fetch = (url, options) => real(url.replace(theirs, `http://127.0.0.1:${port}`), options);
}

async function measure(llm) {
  let [cpu, wall, count] = [0, 0, 0];
  const latencies = [];
  while (count === 0 || wall < told.seconds) {
    const cpuBegan = process.cpuUsage();
    const wallBegan = performance.now();
    latencies.push(...(await generate(llm, told.batch)));
    cpu += microseconds(cpuBegan);
    wall += (performance.now() - wallBegan) / 1000;
    count += told.batch;
  }
  latencies.sort((a, b) => a - b);
  return {
    figure: cpu / count,
    figure_unit: `CPU us a ${told.unit}`,
    count,
    per_second: count / wall,
    cpu_share: cpu / 1e6 / wall,
    p50_ms: latencies[Math.floor(count / 2)],
    p99_ms: latencies[Math.floor(count * 0.99)],
  };
}

// Ask for `count` answers; the milliseconds that each took.
async function generate(llm, count) {
  const latencies = [];
  let next = 0;
  const worker = async () => {
    while (next < count) {
      const prompt = `Why is the sky blue, and why is it red in the evening? This is question number ${1000 + next++}.`;
      const began = performance.now();
      const text = await llm.call(prompt);
      latencies.push(performance.now() - began);
      if (text !== told.answer) {
        throw new Error(`a wrong answer: ${text.slice(0, 100)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(told.concurrency, count) }, worker));
  return latencies;
}

function microseconds(since) {
  const { user, system } = process.cpuUsage(since);
  return user + system;
}

main()
  .catch((error) => ({ error: `${error.name}: ${error.message}` }))
  .then((line) => {
    line.peak_rss_mb = process.resourceUsage().maxRSS / 1000;
    console.log(JSON.stringify(line));
    process.exit(0);
  });
