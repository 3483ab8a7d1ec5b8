export { Client } from './client.js';
export { localStorageOf, web } from './web.js';
export { wx } from './wx.js';
