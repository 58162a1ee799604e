// Perfetto's trace processor, as its web page runs it, behind standard input and output: a TraceProcessorRpcStream each way.
//     node processor.cjs FOLDER    of engine_bundle.js and trace_processor*.wasm
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const { argv, stdin, stderr } = process;
const folder = argv[2];
const read = (name) => fs.readFileSync(path.join(folder, path.basename(name)));
const log = (...words) => stderr.write(words.join(" ") + "\n");

class XMLHttpRequest {  // of all it can do the engine uses one synchronous GET
    open(method, url) { this.url = url; }
    send() {
        const bytes = read(this.url);
        this.status = 200;
        this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    }
}

// What a web worker finds around it. Not in a context of its own: it asks what it catches whether it is an instance of TypeError.
Object.assign(console, { log, warn: log, error: log, info: log });
Object.assign(globalThis, { self: globalThis, WorkerGlobalScope: class {}, importScripts() {}, XMLHttpRequest });
globalThis.location = { href: "http://localhost/engine_bundle.js" };
Object.defineProperty(globalThis, "process", { value: undefined });
vm.runInThisContext(read("engine_bundle.js").toString());

const port = {
    postMessage(reply) {
        for (let sent = 0; sent < reply.length;) sent += fs.writeSync(1, reply, sent);
    },
};
setTimeout(() => {  // behind the promise that its engine stands
    globalThis.onmessage({ data: port });
    stdin.on("data", (bytes) => port.onmessage({ data: new Uint8Array(bytes) }));
}, 0);
