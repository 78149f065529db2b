// OpenAI's JavaScript client against a running server: node openai_client.mjs BASE_URL. Prints one JSON object of what it saw.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "def fibonacci(number):" }];
const base = { model: "tiny", messages, max_tokens: 30, seed: 5 };
const schema = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const seen = {};

const whole = await client.chat.completions.create({ ...base, logprobs: true, top_logprobs: 2 });
seen.text = whole.choices[0].message.content;
seen.usage = whole.usage;
seen.logprobs = whole.choices[0].logprobs.content.map((entry) => [entry.token, entry.top_logprobs.length]);

seen.streamed = "";
const stream = await client.chat.completions.create({ ...base, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  seen.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) seen.streamedUsage = chunk.usage;
}

const form = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
const formed = await client.chat.completions.create({ ...base, max_tokens: 200, response_format: form });
seen.formed = formed.choices[0].message.content;

const forced = { ...base, max_tokens: 300, tools, tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create(forced);
seen.finish = called.choices[0].finish_reason;
seen.call = called.choices[0].message.tool_calls[0].function;
const runner = client.chat.completions.stream(forced);
seen.streamedCall = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const response = await client.responses.create({ model: "tiny", input: "one two", max_output_tokens: 9, temperature: 0 });
seen.response = response.output_text;
seen.embedding = (await client.embeddings.create({ model: "tiny", input: "one two" })).data[0].embedding.length;
seen.models = (await client.models.list()).data.map((model) => model.id);

seen.errors = [];
for (const wrong of [{ temperature: -1 }, { model: "none-such" }, { messages: [] }]) {
  try {
    await client.chat.completions.create({ ...base, ...wrong });
  } catch (error) {
    seen.errors.push([error.constructor.name, error.status, error.param]);
  }
}
console.log(JSON.stringify(seen));
