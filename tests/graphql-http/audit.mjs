// Runs the audits of GraphQL over HTTP against the server at URL; a MUST or SHOULD that fails ends it with 1.
import { serverAudits } from 'graphql-http';

const url = process.env.URL;
let failed = 0;
let passed = 0;
for (const audit of serverAudits({ url, fetchFn: fetch })) {
  const result = await audit.fn();
  if (result.status === 'ok') {
    passed += 1;
  } else {
    const isOptional = result.status === 'notice' && /^MAY/.test(audit.name);
    if (!isOptional) failed += 1;
    console.log(`${isOptional ? 'optional' : 'FAILED'}  ${audit.id}  ${audit.name}: ${result.reason}`);
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
