// Requests of the page as commands for a shell.

/** A word for a POSIX shell: in single quotes, each of its own closed, escaped and opened again. */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * The command that sends what the page sends. withKey: whether the server wants a key; the command names a variable,
 * so that a key ends up in no shared link, screenshot or shell history.
 */
export function curlLine(url, body, withKey) {
  const lines = [`curl ${quoted(url)}`, `-H 'content-type: application/json'`];
  if (withKey) lines.push(`-H "authorization: Bearer $API_KEY"`);
  lines.push(`-d ${quoted(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}
