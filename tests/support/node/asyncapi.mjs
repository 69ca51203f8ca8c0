// Prints what the official parser has against each of the AsyncAPI documents in the list on standard
// input, as JSON. To start it takes 2 s, and each document a tenth of that.
import { readFileSync } from 'node:fs';
import parser from '@asyncapi/parser';

const found = [];
for (const each of JSON.parse(readFileSync(0, 'utf8'))) {
  const { document, diagnostics } = await new parser.Parser().parse(each);
  const said = diagnostics.map(({ code, message, path, severity }) => ({ code, message, path, severity }));
  found.push({ valid: document !== undefined, diagnostics: said });
}
console.log(JSON.stringify(found));
