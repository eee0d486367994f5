"use strict";
// Shows /openapi.json and lets one try what only reads. No library, nothing from outside.

const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

let description = null;

function resolve(schema) {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? description.components.schemas[name] : schema;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return "one of " + schema.enum.join(", ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return "array of " + typeOf(schema.items);
  return [].concat(schema.type || "any").join(" or ") + (schema.format ? ` (${schema.format})` : "");
}

const RULES = ["pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"];

function rulesOf(schema) {
  return RULES.filter((rule) => schema && schema[rule] !== undefined).map((rule) => `${rule} ${schema[rule]}`).join("; ");
}

function schemaTable(schema, depth) {
  const known = resolve(schema) || {};
  const inner = known.type === "array" ? resolve(known.items) || {} : known;
  if (!inner.properties) return element("p", { textContent: typeOf(schema) });
  const rows = Object.entries(inner.properties).map(([name, field]) => {
    const cell = element("td", {}, element("code", { textContent: typeOf(field) }));
    if (rulesOf(field)) cell.append(element("div", { className: "rule", textContent: rulesOf(field) }));
    const target = resolve(field.type === "array" ? field.items : field) || {};
    if (target.properties && depth > 0) {
      const more = element("details", {}, element("summary", { textContent: "fields" }));
      more.addEventListener("toggle", () => {
        if (more.open && more.children.length === 1) more.append(schemaTable(field, depth - 1));
      });
      cell.append(more);
    }
    const required = (inner.required || []).includes(name) ? " *" : "";
    return element("tr", {}, element("td", {}, element("code", { textContent: name + required })), cell,
      element("td", { textContent: field.description || "" }));
  });
  return element("table", {}, ...rows);
}

function parameterRows(parameters, inputs) {
  return parameters.map((parameter) => {
    const input = element("input", { placeholder: parameter.in, ariaLabel: parameter.name });
    inputs.push([parameter, input]);
    const required = parameter.required ? " *" : "";
    return element("tr", {}, element("td", {}, element("code", { textContent: parameter.name + required })),
      element("td", {}, input, element("div", { className: "rule", textContent: `${typeOf(parameter.schema)} ${rulesOf(parameter.schema)}` })),
      element("td", { textContent: parameter.description || "" }));
  });
}

async function tryIt(path, inputs, output) {
  const query = new URLSearchParams();
  let target = path;
  for (const [parameter, input] of inputs) {
    if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query" && input.value) query.append(parameter.name, input.value);
  }
  const headers = byId("key").value ? { authorization: `Bearer ${byId("key").value}` } : {};
  const url = query.size ? `${target}?${query}` : target;
  output.textContent = "…";
  try {
    const answer = await fetch(url, { headers });
    const text = await answer.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it came */ }
    output.textContent = `GET ${url}\n${answer.status} ${answer.statusText}\n\n${shown}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

function show(path, method, operation) {
  const inputs = [];
  const parts = [
    element("h2", {}, element("span", { className: "method", textContent: method }), element("code", { textContent: path })),
    element("p", { textContent: operation.description || operation.summary || "" }),
  ];
  if (operation["x-argosy-role"]) parts.push(element("p", { className: "rule", textContent: `Least role: ${operation["x-argosy-role"]}` }));
  if (operation.parameters) parts.push(element("h3", { textContent: "Parameters" }), element("table", {}, ...parameterRows(operation.parameters, inputs)));
  if (operation.requestBody) {
    const [type, media] = Object.entries(operation.requestBody.content)[0];
    parts.push(element("h3", { textContent: `Body: ${type}` }), schemaTable(media.schema, 4));
  }
  for (const [status, answer] of Object.entries(operation.responses)) {
    const [type, media] = Object.entries(answer.content || {})[0] || ["", {}];
    parts.push(element("h3", { textContent: `Answer ${status}: ${type}` }), schemaTable(media.schema && media.schema["x-argosy-event"] || media.schema, 4));
  }
  if (method === "get") {
    const output = element("pre", { textContent: "" });
    const button = element("button", { className: "run", textContent: "Try it" });
    button.addEventListener("click", () => tryIt(path, inputs, output));
    parts.push(button, output);
  }
  byId("operation").replaceChildren(...parts);
}

function index() {
  const wanted = byId("search").value.toLowerCase();
  const groups = new Map(description.tags.map((tag) => [tag.name, []]));
  for (const [path, item] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      if (wanted && !`${path} ${operation.operationId}`.toLowerCase().includes(wanted)) continue;
      const button = element("button", { title: path }, element("span", { className: "method", textContent: method }), operation.summary);
      button.addEventListener("click", () => {
        document.querySelectorAll("nav button").forEach((other) => other.removeAttribute("aria-current"));
        button.setAttribute("aria-current", "true");
        show(path, method, operation);
      });
      groups.get(operation.tags[0]).push(button);
    }
  }
  const shown = [...groups].filter(([, buttons]) => buttons.length);
  byId("index").replaceChildren(...shown.flatMap(([tag, buttons]) => [element("h2", { textContent: tag }), ...buttons]));
}

fetch("/openapi.json").then((answer) => answer.json()).then((document_) => {
  description = document_;
  byId("search").addEventListener("input", index);
  index();
});
