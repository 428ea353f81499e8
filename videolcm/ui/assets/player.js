// The comparison's player: draws every cell's frames on a canvas of its own, all by one clock.
//
// In: props.value as player.Board makes it; a cell's `strip` is an image with its frames one below the other. Out: 'stop_cell' {cell: index}.
// Runs inside gr.HTML with `element`, `props`, `trigger` and `watch`. It knows nothing about models, and asks no server for anything.

const find = (selector) => element.querySelector(selector);
const [player, grid, play, scrub, time, difference] = ['.player', '.tiles', '.play', '.scrub', '.time', '.difference'].map(find);
const tiles = [];
let fps = 8, count = 1, speed = 1, position = 0, playing = true, before = null, shown = null;

// ---- what a tile is made of

function make(tag, className, parent) {
  const node = Object.assign(document.createElement(tag), {className});
  parent.append(node);
  return node;
}

function newTile(index) {
  const root = make('figure', 'tile', grid), picture = make('div', 'picture', root), canvas = make('canvas', '', picture);
  const stop = make('button', 'stop', picture), part = make('progress', '', picture), caption = make('figcaption', '', root);
  Object.assign(stop, {type: 'button', textContent: 'Stop', onclick: () => trigger('stop_cell', {cell: index})});
  const parts = {name: make('b', '', caption), note: make('span', 'note', caption), figures: make('dl', '', caption), warning: make('p', 'warning', caption)};
  return {root, canvas, pen: canvas.getContext('2d'), stop, part, ...parts, image: null, strip: null};
}

function fill(tile, cell) {
  tile.root.dataset.state = cell.state;
  tile.root.toggleAttribute('data-reference', cell.reference);
  tile.stop.setAttribute('aria-label', `Stop ${cell.name}`);
  tile.part.value = cell.part;
  tile.done = cell.state === 'done';
  tile.reference = cell.reference;
  for (const key of ['name', 'note', 'warning']) tile[key].textContent = cell[key];
  tile.figures.replaceChildren(...cell.figures.flatMap(([name, value]) => [
    Object.assign(document.createElement('dt'), {textContent: name}), Object.assign(document.createElement('dd'), {textContent: value}),
  ]));
}

async function load(tile, strip) {
  tile.strip = strip;
  const image = strip ? Object.assign(new Image(), {src: strip}) : null;
  if (image) await image.decode().catch(() => {});
  if (tile.strip !== strip) return; // a newer one came meanwhile
  tile.image = image;
  shown = null;
}

// ---- drawing

function draw(tile, frame, reference) {
  const {canvas, pen, image} = tile;
  canvas.dataset.frame = frame;
  if (!image) return pen.clearRect(0, 0, canvas.width, canvas.height);
  paint(pen, image, frame, 'copy');
  if (!reference || tile.reference || !tile.done) return;
  paint(pen, reference, frame, 'difference'); // |own - reference|, for each channel
  pen.globalCompositeOperation = 'lighter';
  for (let twice = 0; twice < 2; twice++) pen.drawImage(canvas, 0, 0); // 2 x 2
}

function paint(pen, image, frame, operation) {
  const {width, height} = pen.canvas, tall = image.naturalHeight / count;
  pen.globalCompositeOperation = operation;
  pen.drawImage(image, 0, frame * tall, image.naturalWidth, tall, 0, 0, width, height);
}

function show() {
  const frame = Math.min(count - 1, Math.floor(position));
  if (frame === shown) return;
  shown = frame;
  const reference = tiles.find((tile) => tile.reference && tile.done)?.image;
  difference.disabled = !reference;
  tiles.forEach((tile) => draw(tile, frame, difference.ariaPressed === 'true' && reference));
  scrub.value = frame;
  time.value = `${frame + 1} / ${count}`;
}

// ---- the clock

function tick(now) {
  if (!element.isConnected) return;
  if (playing && before !== null) position = (position + ((now - before) / 1000) * fps * speed) % count;
  before = now;
  show();
  requestAnimationFrame(tick);
}

function setPlaying(value) {
  playing = value;
  player.toggleAttribute('data-paused', !playing);
  play.setAttribute('aria-label', playing ? 'Pause' : 'Play');
}

function seek(frame) {
  setPlaying(false);
  position = (frame + count) % count;
  show();
}

find('.back').onclick = () => seek(Math.floor(position) - 1);
find('.forward').onclick = () => seek(Math.floor(position) + 1);
play.onclick = () => setPlaying(!playing);
scrub.oninput = () => seek(Number(scrub.value));
find('.speed select').onchange = (event) => { speed = Number(event.target.value); };
difference.onclick = () => {
  difference.ariaPressed = String(difference.ariaPressed !== 'true');
  shown = null;
};
player.onkeydown = (event) => {
  const press = {ArrowLeft: '.back', ArrowRight: '.forward', ' ': '.play'}[event.key];
  const typing = event.target.matches('select') || (event.key === ' ' && event.target.matches('button'));
  if (!press || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  find(press).click();
};

// ---- what the server says

function update() {
  const board = props.value || {cells: []}, {cells} = board;
  ({fps = 8, count = 1} = board);
  position %= count;
  scrub.max = count - 1;
  player.toggleAttribute('data-empty', !cells.length);
  grid.style.setProperty('--columns', cells.length > 5 ? Math.ceil(cells.length / 2) : cells.length || 1);
  grid.style.setProperty('--rows', cells.length > 5 ? 2 : 1);
  while (tiles.length < cells.length) tiles.push(newTile(tiles.length));
  tiles.splice(cells.length).forEach((tile) => tile.root.remove());
  cells.forEach((cell, i) => {
    const tile = tiles[i], [width, height] = board.size;
    if (tile.canvas.width !== width || tile.canvas.height !== height) Object.assign(tile.canvas, {width, height});
    fill(tile, cell);
    if (tile.strip !== cell.strip) load(tile, cell.strip);
  });
  shown = null;
}

watch('value', update);
update();
requestAnimationFrame(tick);
