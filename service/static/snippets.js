// What was just done, as commands that do the same.

import { address, readKey } from "./requests.js";

/** Quoted for a POSIX shell. */
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const PLAIN = /^[\p{L}\p{N} _.,!?-]+$/u;

/** curl reads a leading @ or <, and anything behind a semicolon, as something else. */
function curlField(expression) {
  const field = `expression=${expression}`;
  return PLAIN.test(expression) ? `-F "${field}"` : `--form-string ${shell(field)}`;
}

function curlFile(name) {
  if (/^[\w.-]+$/.test(name)) return `-F image=@${name}`;
  const quoted = name.replaceAll("\\", "\\\\").replaceAll('"', '\\"');
  return `-F ${shell(`image=@"${quoted}"`)}`;
}

/** `threshold`: null for the model's own. `sample`: whether the photo comes from this service. */
export function curlSnippet({ name, sample, expressions, threshold }) {
  const lines = [curlFile(name), ...expressions.map(curlField)];
  if (threshold !== null) lines.push(`-F threshold=${threshold}`);
  if (readKey()) lines.push('-H "Authorization: Bearer $SEGVLM_KEY"');
  lines.push(address("segment"));
  const call = `curl ${lines.join(" \\\n  ")}`;
  return sample ? `curl -O ${address(`static/samples/${name}`)}\n${call}` : call;
}

/** JSON's strings are Python's too. */
export function pythonSnippet({ name, sample, expressions, threshold }) {
  const key = readKey();
  const data = [`"expression": ${JSON.stringify(expressions).replaceAll('","', '", "')}`];
  if (threshold !== null) data.push(`"threshold": ${threshold}`);
  return [
    ...(key ? ["import os", ""] : []),
    "import httpx",
    "from pycocotools import mask as coco",
    "",
    ...(sample
      ? [`photo = httpx.get(${JSON.stringify(address(`static/samples/${name}`))}).content`]
      : [`photo = open(${JSON.stringify(name)}, "rb")`]),
    "answer = httpx.post(",
    `    ${JSON.stringify(address("segment"))},`,
    '    files={"image": photo},',
    `    data={${data.join(", ")}},`,
    ...(key ? ['    headers={"Authorization": f"Bearer {os.environ[\'SEGVLM_KEY\']}"},'] : []),
    "    timeout=30,",
    ")",
    "answer.raise_for_status()",
    'for result in answer.json()["results"]:',
    '    mask = coco.decode(result["mask"])  # uint8 (height, width), 1 inside',
    '    print(result["expression"], result["score"], result["area"], mask.shape)',
  ].join("\n");
}
