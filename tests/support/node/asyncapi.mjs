// Prints what the official parser has against the AsyncAPI document on standard input, as JSON.
import { readFileSync } from 'node:fs';
import parser from '@asyncapi/parser';

const { document, diagnostics } = await new parser.Parser().parse(readFileSync(0, 'utf8'));
const found = diagnostics.map(({ code, message, path, severity }) => ({ code, message, path, severity }));
console.log(JSON.stringify({ valid: document !== undefined, diagnostics: found }));
