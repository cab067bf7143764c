// A prettier plugin for JSON with comments, standing in for prettier's own, which needs its whole JavaScript parser.
import { applyEdits, format } from 'jsonc-parser';

const OPTIONS = { tabSize: 2, insertSpaces: true, eol: '\n' };

export const parsers = {
  jsonc: {
    astFormat: 'jsonc-text',
    parse: (text) => ({ text }),
    locStart: () => 0,
    locEnd: ({ text }) => text.length,
  },
};

export const printers = {
  'jsonc-text': { print: ({ node: { text } }) => applyEdits(text, format(text, undefined, OPTIONS)) },
};
