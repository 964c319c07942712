// The official JavaScript SDK, unmodified. HEARTH_BASE_URL and HEARTH_KEY name a running server.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.env.HEARTH_BASE_URL}/v1`, apiKey: process.env.HEARTH_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is Hearth?" }];
const model = "tiny";

test("chat, and the same streamed", async () => {
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 24, temperature: 0 });
  assert.equal(whole.choices[0].message.role, "assistant");
  assert.ok(whole.usage.total_tokens > 0);
  const stream = await client.chat.completions.create({
    model, messages, max_tokens: 24, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper, n, stop and logprobs", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 8, temperature: 0 });
  assert.ok((await runner.finalChatCompletion()).choices[0].message.content);
  const many = await client.chat.completions.create({ model, messages, max_tokens: 4, n: 3, logprobs: true, top_logprobs: 2, ignore_eos: true });
  assert.equal(many.choices.length, 3);
  assert.equal(many.choices[0].logprobs.content[0].top_logprobs.length, 2);
});

test("a stream that is left ends quietly", async () => {
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 400, stream: true, ignore_eos: true });
  for await (const _ of stream) break;
  assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 2 })).choices.length);
});

test("forced tool calls", async () => {
  const parameters = {
    type: "object", properties: { fade: { type: "boolean" } }, required: ["fade"], additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    model, messages, max_tokens: 200, tool_choice: "required",
    tools: [{ type: "function", function: { name: "stop_music", parameters } }],
  });
  const call = answer.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "stop_music");
  assert.equal(typeof JSON.parse(call.function.arguments).fade, "boolean");
});

test("embeddings and models", async () => {
  const answer = await client.embeddings.create({ model: "all-MiniLM-L6-v2", input: ["A cat.", "A dog."] });
  assert.equal(answer.data.length, 2);
  assert.equal(answer.data[0].embedding.length, 384);
  const ids = [];
  for await (const listed of client.models.list()) ids.push(listed.id);
  assert.ok(ids.length >= 2);
});

test("errors have their classes", async () => {
  await assert.rejects(client.chat.completions.create({ model: "none", messages }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list().then(() => {}), OpenAI.AuthenticationError);
});

test("files and a vector store that is searched", async () => {
  const store = await client.vectorStores.create({ name: "notes" });
  const text = "Tomatoes want sun, warm nights and much water.";
  const file = await client.vectorStores.files.uploadAndPoll(store.id, await toFile(Buffer.from(text), "garden.md"));
  assert.equal(file.status, "completed");
  const batch = await client.vectorStores.fileBatches.uploadAndPoll(store.id, {
    files: [await toFile(Buffer.from("The motor oil is changed by a mechanic."), "car.md")],
  });
  assert.deepEqual([batch.status, batch.file_counts.completed], ["completed", 1]);
  const found = await client.vectorStores.search(store.id, { query: "growing tomatoes", max_num_results: 1 });
  assert.equal(found.data[0].filename, "garden.md");
  await client.vectorStores.files.update(file.id, { vector_store_id: store.id, attributes: { year: 2024 } });
  const filters = { type: "gte", key: "year", value: 2024 };
  const filtered = await client.vectorStores.search(store.id, { query: "motor oil", filters });
  assert.deepEqual(filtered.data.map((result) => result.filename), ["garden.md"]);
  assert.equal(await (await client.files.content(file.id)).text(), text);
  const ids = [];
  for await (const one of client.vectorStores.files.list(store.id, { limit: 1 })) ids.push(one.id);
  assert.equal(ids.length, 2);
  for (const id of ids) assert.ok((await client.files.delete(id)).deleted);
  assert.ok((await client.vectorStores.delete(store.id)).deleted);
  await assert.rejects(client.vectorStores.retrieve(store.id), OpenAI.NotFoundError);
});
