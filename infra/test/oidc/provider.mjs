// An OpenID Connect provider on a free port, with one client that gets JWT access tokens by client credentials. Its keys
// are in a file, which the test rewrites before it starts the provider anew: so keys rotate.
// Usage: node provider.mjs PORT KEYS_FILE. Prints `ready <issuer>`.
import { readFileSync } from 'node:fs';
import http from 'node:http';
import Provider from 'oidc-provider';

const [port, keys] = process.argv.slice(2);
const server = http.createServer();
server.listen(Number(port), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    jwks: JSON.parse(readFileSync(keys, 'utf8')),
    clients: [{
      client_id: 'plant', client_secret: 'a secret of the test', grant_types: ['client_credentials'],
      redirect_uris: [], response_types: [],
      id_token_signed_response_alg: JSON.parse(readFileSync(keys, 'utf8')).keys[0].alg,
    }],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          scope: 'intents', audience: resource.replace('urn:', ''), accessTokenFormat: 'jwt', accessTokenTTL: 600,
          jwt: { sign: { alg: JSON.parse(readFileSync(keys, 'utf8')).keys[0].alg } },
        }),
      },
    },
    extraTokenClaims: () => ({ roles: ['owner'], owner: 'plant' }),
  });
  server.on('request', provider.callback());
  console.log(`ready ${issuer}`);
});
