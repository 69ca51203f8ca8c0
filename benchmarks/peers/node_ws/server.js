// Node.js `ws` + `pg` LISTEN. The broadcast is that of the ws README, which advises no deflate.
import pg from 'pg';
import { WebSocket, WebSocketServer } from 'ws';

const wss = new WebSocketServer({
  host: '127.0.0.1',
  port: Number(process.argv[2]),
  path: '/ws',
  perMessageDeflate: false,
  backlog: 4096,
});
wss.on('connection', (ws) => ws.on('error', () => ws.terminate()));

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
client.on('notification', ({ payload }) => {
  wss.clients.forEach((ws) => {
    if (ws.readyState === WebSocket.OPEN) ws.send(payload);
  });
});
await client.query('LISTEN runs');
console.log('ready');
