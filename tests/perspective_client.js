// perspective-api-client (npm) asked a few things; its fixed address is exchanged by an interceptor of the axios that it uses.
// node perspective_client.js FOLDER ADDRESS KEY: FOLDER holds node_modules. Prints a JSON list of what it was answered.
const {createRequire} = require('module');
const [folder, address, key] = process.argv.slice(2);
const need = createRequire(folder + '/');
const theirs = createRequire(need.resolve('perspective-api-client'));
theirs('axios').interceptors.request.use(c => ({...c, url: c.url.replace('https://commentanalyzer.googleapis.com', address)}));
const Perspective = need('perspective-api-client');

const asked = [
  [key, 'you are bad1'],
  [key, {comment: {text: 'Good soup. You are bad1!'}, requestedAttributes: {INSULT: {}}, spanAnnotations: true, clientToken: '7'}],
  [key, 'a', {attributes: ['toxicity', 'identity_attack']}],
  [key, 'a', {attributes: ['flirtation']}],
  ['wrong', 'a'],
];
Promise.all(asked.map(([apiKey, ...what]) => new Perspective({apiKey}).analyze(...what)
  .catch(e => ({name: e.name, message: e.message, status: e.response && e.response.status}))))
  .then(found => console.log(JSON.stringify(found)));
