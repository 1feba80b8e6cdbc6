"use strict";
(() => {
  const GUTTER = 46, NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
  const BLACK = new Set([1, 3, 6, 8, 10]);
  const HORIZON_S = 0.2, VOICES = 72, ROWS = 100;
  const name = (pitch) => NAMES[pitch % 12] + (Math.floor(pitch / 12) - 1);
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  /* A small synthesizer: one soft, struck voice a note, and a little room. */
  class Synth {
    constructor() {
      const context = this.context = new AudioContext();
      this.wave = context.createPeriodicWave(new Float32Array(9), new Float32Array([0, 1, .42, .24, .13, .08, .04, .03, .02]));
      const out = new DynamicsCompressorNode(context, { threshold: -20, ratio: 5 });
      out.connect(context.destination);
      const length = Math.floor(1.1 * context.sampleRate), room = context.createBuffer(2, length, context.sampleRate);
      for (const channel of [0, 1]) {
        const samples = room.getChannelData(channel);
        for (let i = 0; i < length; i++) samples[i] = (2 * Math.random() - 1) * (1 - i / length) ** 3;
      }
      this.reverb = new ConvolverNode(context, { buffer: room });
      this.reverb.connect(new GainNode(context, { gain: .1 })).connect(out);
      this.out = out;
      this.open();
    }
    /* What sounds from here on can be silenced at once. */
    open() {
      this.bus = new GainNode(this.context, { gain: .5 });
      this.bus.connect(this.out);
      this.bus.connect(this.reverb);
      this.voices = 0;
    }
    silence() {
      const old = this.bus;
      old.gain.setTargetAtTime(0, this.context.currentTime, .03);
      setTimeout(() => old.disconnect(), 300);
      this.open();
    }
    note(pitch, velocity, at, seconds) {
      if (this.voices >= VOICES) return;
      const context = this.context, frequency = 440 * 2 ** ((pitch - 69) / 12), strength = velocity / 127;
      const peak = .05 + .3 * strength ** 1.6, end = at + Math.max(seconds, .06);
      const tone = new OscillatorNode(context, { frequency });
      tone.setPeriodicWave(this.wave);
      const filter = new BiquadFilterNode(context, { frequency: Math.min(frequency * (2 + 5 * strength), 11000), Q: .3 });
      const gain = new GainNode(context, { gain: 0 });
      gain.gain.setValueAtTime(0, at);
      gain.gain.linearRampToValueAtTime(peak, at + .006);
      gain.gain.setTargetAtTime(peak * .12, at + .006, 1.1 * 2 ** ((60 - pitch) / 24));
      gain.gain.setTargetAtTime(0, end, .07);
      const place = new StereoPannerNode(context, { pan: clamp((pitch - 64) / 60, -.6, .6) });
      tone.connect(filter).connect(gain).connect(place).connect(this.bus);
      const bus = this.bus;
      this.voices++;
      tone.onended = () => { if (bus === this.bus) this.voices--; };
      tone.start(at);
      tone.stop(end + .5);
    }
  }
  let synth = null, playing = null;

  const unpack = (piece) => {
    const sum = (steps) => { let at = 0; return Float64Array.from(steps, (step) => (at += step) / 1000); };
    const onset = sum(piece.onset), offset = onset.map((at, i) => at + piece.length[i] / 1000);
    const wrong = [];
    if (piece.truth) piece.truth.forEach((truth, i) => { if (truth >= 0 && truth !== piece.label[i]) wrong.push(i); });
    return { ...piece, onset, offset, wrong, bars: piece.bars && sum(piece.bars),
      seconds: offset.reduce((a, b) => Math.max(a, b), 0), longest: Math.max(0, ...new Set(piece.length)) / 1000,
      low: piece.pitch.reduce((a, b) => Math.min(a, b), 127), high: piece.pitch.reduce((a, b) => Math.max(a, b), 0) };
  };
  /* The first note that begins at a time or later. */
  const first = (onsets, at) => {
    let low = 0, high = onsets.length;
    while (low < high) { const middle = (low + high) >> 1; if (onsets[middle] < at) low = middle + 1; else high = middle; }
    return low;
  };

  class Roll {
    constructor(root) {
      this.root = root;
      const data = JSON.parse(root.querySelector("script").textContent);
      this.classes = data.classes;
      this.pieces = data.pieces;
      this.find = (selector) => root.querySelector(selector);
      this.scroll = this.find(".roll-scroll");
      this.space = this.find(".roll-space");
      [this.base, this.light, this.map] = ["notes", "light", "map"].map((kind) => this.find(`.roll-${kind}`));
      this.line = this.find(".roll-line");
      this.tip = this.find(".roll-tip");
      this.speed = 1;
      this.view = "both";
      this.muted = new Set();
      this.soloed = new Set();
      this.listen();
      this.theme();
      this.open(0);
    }

    listen() {
      const root = this.root, on = (element, kind, does, options) => element && element.addEventListener(kind, does, options);
      on(root, "click", (event) => {
        const button = event.target.closest("[data-do]");
        if (button) this[button.dataset.do](button);
      });
      on(this.find("[aria-label=Piece]"), "change", (event) => this.open(Number(event.target.value)));
      on(this.find("[aria-label=Speed]"), "change", (event) => {
        const was = playing === this;
        if (was) this.stop();
        this.speed = Number(event.target.value);
        if (was) this.start();
      });
      on(this.scroll, "scroll", () => this.dirty());
      on(this.scroll, "keydown", (event) => this.key(event));
      on(this.scroll, "wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        this.zoom(1.0015 ** -event.deltaY, event.clientX - this.scroll.getBoundingClientRect().left);
      }, { passive: false });
      on(this.space, "pointermove", (event) => { if (event.pointerType === "mouse") this.hover(event); });
      on(this.space, "pointerleave", () => { this.tip.hidden = true; });
      on(this.space, "click", (event) => this.press(event));
      const drag = (event) => { if (event.buttons) this.seek((event.offsetX / this.map.clientWidth) * this.piece.seconds, true); };
      on(this.map, "pointerdown", (event) => { this.map.setPointerCapture(event.pointerId); drag(event); });
      on(this.map, "pointermove", drag);
      on(this.find(".roll-list"), "toggle", () => this.table());
      on(matchMedia("(prefers-color-scheme: dark)"), "change", () => { this.theme(); this.dirty(); this.overview(); });
      new ResizeObserver(() => this.layout()).observe(this.scroll);
    }

    theme() {
      const style = getComputedStyle(this.root), get = (key) => style.getPropertyValue(key).trim();
      const keys = { ink: "--ink", soft: "--soft", back: "--roll-back", stripe: "--roll-stripe", grid: "--roll-grid", line: "--roll-line", none: "--none" };
      this.colour = Object.fromEntries(Object.entries(keys).map(([key, variable]) => [key, get(variable)]));
      this.colours = [...this.classes.map((_, i) => get(`--label-${i}`)), this.colour.none];
    }

    open(index) {
      this.stop();
      this.index = index;
      this.piece = unpack(this.pieces[index]);
      this.at = 0;
      this.chosen = -1;
      this.page = 0;
      const select = this.find("[aria-label=Piece]");
      if (select) select.value = String(index);
      if (!this.piece.truth) this.view = "model"; else if (this.view === "model") this.view = this.asked || "both";
      const { label, truth, wrong } = this.piece, known = truth ? truth.filter((each) => each >= 0).length : 0;
      for (const chip of this.root.querySelectorAll(".roll-label")) {
        const own = Number(chip.dataset.label), count = label.filter((each) => each === own).length;
        chip.querySelector("small").textContent = count.toLocaleString("en");
        chip.hidden = own < 0 && !count;
      }
      const score = this.find(".roll-score");
      if (score) score.textContent = known ? `${percent(1 - wrong.length / known)} right, ${wrong.length.toLocaleString("en")} of ${known.toLocaleString("en")} notes wrong` : "";
      this.say(`${this.piece.name}: ${label.length.toLocaleString("en")} notes, ${clock(this.piece.seconds)} long.`);
      this.pps = 0;
      this.scroll.scrollLeft = 0;
      this.layout();
      this.table();
    }

    /* ---- time and size */
    get panels() { return this.view === "both" ? ["truth", "model"] : [this.view]; }
    get width() { return this.scroll.clientWidth; }
    get fitting() { return Math.max(1, this.width - GUTTER - 12) / Math.max(this.piece.seconds, 1); }
    layout() {
      if (!this.width || !this.piece) return;
      const narrow = this.width < 600, count = this.panels.length;
      if (!this.pps) this.pps = Math.max(this.fitting, narrow ? 46 : 64);
      this.low = Math.max(0, this.piece.low - 2);
      this.high = Math.min(127, this.piece.high + 2);
      this.panel = count > 1 ? (narrow ? 210 : 270) : (narrow ? 320 : 420);
      this.gap = count > 1 ? 10 : 0;
      this.height = 22 + count * this.panel + (count - 1) * this.gap;
      this.space.style.width = `${Math.max(this.width, GUTTER + this.piece.seconds * this.pps + 12)}px`;
      this.space.style.height = `${this.height}px`;
      this.find(".roll-screen").style.width = `${this.width}px`;
      for (const canvas of [this.base, this.light]) this.size(canvas, this.width, this.height);
      this.size(this.map, this.map.clientWidth, 44);
      this.overview();
      this.place();
      this.dirty();
    }
    size(canvas, width, height) {
      const ratio = devicePixelRatio || 1;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      if (canvas !== this.map) canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    x(at) { return GUTTER + at * this.pps - this.scroll.scrollLeft; }
    y(pitch, panel) { return 22 + panel * (this.panel + this.gap) + (this.high - pitch) * this.row; }
    get row() { return this.panel / (this.high - this.low + 1); }
    zoom(factor, x = this.width / 2) {
      const under = (this.scroll.scrollLeft + x - GUTTER) / this.pps;
      this.pps = clamp(this.pps * factor, this.fitting, 400);
      this.layout();
      this.scroll.scrollLeft = under * this.pps + GUTTER - x;
    }
    closer() { this.zoom(1.5); }
    wider() { this.zoom(1 / 1.5); }
    fit() { this.zoom(0); }
    previous() { this.open((this.index + this.pieces.length - 1) % this.pieces.length); }
    next() { this.open((this.index + 1) % this.pieces.length); }

    /* ---- drawing */
    dirty() {
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => { this.waiting = false; this.draw(); this.glow(); });
    }
    labels(panel) { return panel === "truth" ? this.piece.truth : this.piece.label; }
    heard(label) { return this.soloed.size ? this.soloed.has(label) : !this.muted.has(label); }
    tint(label) { return this.colours[label < 0 ? this.classes.length : label]; }
    opacity(i, panel) {
      if (panel === "truth" || this.piece.label[i] < 0) return 1;
      const chance = 1 / Math.max(this.classes.length, 2), sure = (this.piece.probability[i] / 100 - chance) / (1 - chance);
      return .3 + .7 * clamp(sure, 0, 1);
    }
    draw() {
      const pen = this.base.getContext("2d"), { onset, offset, pitch, label, truth } = this.piece;
      const from = (this.scroll.scrollLeft) / this.pps, to = from + (this.width - GUTTER) / this.pps;
      pen.clearRect(0, 0, this.width, this.height);
      this.panels.forEach((panel, k) => this.ground(pen, k, from, to));
      this.ruler(pen, from, to);
      const last = first(onset, to), round = this.row > 3 ? 2 : 0;
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, 0, this.width - GUTTER, this.height);
      pen.clip();
      this.panels.forEach((panel, k) => {
        const labels = this.labels(panel);
        for (let i = first(onset, from - this.piece.longest); i < last; i++) {
          if (offset[i] < from) continue;
          const x = this.x(onset[i]), wide = Math.max(1.5, (offset[i] - onset[i]) * this.pps - 1), high = Math.max(2, this.row - 1);
          const y = this.y(pitch[i], k);
          pen.fillStyle = this.tint(labels[i]);
          pen.globalAlpha = this.heard(labels[i]) ? this.opacity(i, panel) : .1;
          if (wide > 4 && round) { pen.beginPath(); pen.roundRect(x, y, wide, high, round); pen.fill(); } else pen.fillRect(x, y, wide, high);
          if (panel === "model" && truth && truth[i] >= 0 && truth[i] !== label[i] && wide > 3) {
            pen.globalAlpha = this.heard(labels[i]) ? .7 : .15;
            pen.strokeStyle = this.colour.ink;
            pen.lineWidth = 1;
            pen.beginPath();
            pen.roundRect(x - .5, y - .5, wide + 1, high + 1, 2.5);
            pen.stroke();
          }
        }
      });
      pen.restore();
      pen.globalAlpha = 1;
      this.panels.forEach((panel, k) => this.keys(pen, k, panel));
      this.window();
    }
    ground(pen, k) {
      const top = 22 + k * (this.panel + this.gap);
      pen.fillStyle = this.colour.back;
      pen.fillRect(GUTTER, top, this.width - GUTTER, this.panel);
      for (let pitch = this.low; pitch <= this.high; pitch++) {
        if (BLACK.has(pitch % 12)) { pen.fillStyle = this.colour.stripe; pen.fillRect(GUTTER, this.y(pitch, k), this.width - GUTTER, this.row); }
        if (pitch % 12 === 0) { pen.fillStyle = this.colour.grid; pen.fillRect(GUTTER, this.y(pitch, k) + this.row, this.width - GUTTER, 1); }
      }
    }
    ruler(pen, from, to) {
      const bars = this.piece.bars, room = 58;
      pen.font = "11px system-ui, sans-serif";
      pen.textBaseline = "middle";
      const tick = (at, text) => {
        const x = Math.round(this.x(at));
        if (x < GUTTER) return;
        pen.fillStyle = this.colour.grid;
        this.panels.forEach((_, k) => pen.fillRect(x, 22 + k * (this.panel + this.gap), 1, this.panel));
        pen.fillStyle = this.colour.soft;
        pen.fillText(text, x + 3, 11);
      };
      if (bars && bars.length > 1) {
        const mean = (bars[bars.length - 1] - bars[0]) / (bars.length - 1), step = [1, 2, 4, 8, 16, 32, 64, 128].find((n) => n * mean * this.pps >= room) || 256;
        for (let i = first(bars, from); i < bars.length && bars[i] <= to; i++) if (i % step === 0) tick(bars[i], String(i + 1));
      } else {
        const step = [1, 2, 5, 10, 15, 30, 60, 120].find((n) => n * this.pps >= room) || 300;
        for (let at = Math.ceil(from / step) * step; at <= to; at += step) tick(at, clock(at));
      }
      pen.fillStyle = this.colour.soft;
      pen.fillText(bars && bars.length > 1 ? "bar" : "time", 4, 11);
    }
    keys(pen, k, panel) {
      pen.font = "11px system-ui, sans-serif";
      pen.textBaseline = "alphabetic";
      pen.fillStyle = this.colour.soft;
      const top = 22 + k * (this.panel + this.gap);
      for (let pitch = this.low; pitch <= this.high; pitch++) if (pitch % 12 === 0 && this.y(pitch, k) > top + (this.piece.truth ? 22 : 4)) pen.fillText(name(pitch), 4, this.y(pitch, k) + this.row);
      if (this.piece.truth) {
        pen.font = "600 11px system-ui, sans-serif";
        pen.fillStyle = this.colour.ink;
        pen.fillText(panel, 4, top + 12);
      }
    }
    /* The notes that sound now, and the moving line. */
    glow() {
      const pen = this.light.getContext("2d"), { onset, offset, pitch } = this.piece, x = this.x(this.at);
      pen.clearRect(0, 0, this.width, this.height);
      this.line.style.transform = `translateX(${x}px)`;
      this.line.hidden = x < GUTTER - 1 || x > this.width;
      const lit = (i, stroke) => this.panels.forEach((panel, k) => {
        const label = this.labels(panel)[i], left = Math.max(this.x(onset[i]), GUTTER), right = this.x(offset[i]);
        if (right < GUTTER || (!this.heard(label) && !stroke)) return;
        pen.beginPath();
        pen.roundRect(left - 1, this.y(pitch[i], k) - 1, Math.max(3, right - left) + 1, Math.max(2, this.row - 1) + 2, 3);
        if (!stroke) { pen.fillStyle = this.tint(label); pen.shadowColor = this.tint(label); pen.shadowBlur = 10; pen.fill(); pen.shadowBlur = 0; }
        pen.strokeStyle = stroke || this.colour.back;
        pen.lineWidth = stroke ? 2 : 1;
        pen.stroke();
      });
      if (playing === this) for (let i = first(onset, this.at - this.piece.longest); i < onset.length && onset[i] <= this.at; i++) if (offset[i] > this.at) lit(i);
      if (this.chosen >= 0) lit(this.chosen, this.colour.ink);
    }
    /* The whole piece in a strip: its notes, and where the model is wrong. */
    overview() {
      const wide = this.map.clientWidth, pen = this.map.getContext("2d"), { onset, offset, pitch, label, wrong } = this.piece;
      if (!wide) return;
      const scale = wide / Math.max(this.piece.seconds, .001), high = wrong.length ? 36 : 42;
      const picture = this.picture = new OffscreenCanvas(this.map.width, this.map.height), brush = picture.getContext("2d");
      brush.setTransform(pen.getTransform());
      for (let i = 0; i < onset.length; i++) {
        brush.fillStyle = this.tint(label[i]);
        brush.globalAlpha = this.heard(label[i]) ? .75 : .08;
        brush.fillRect(onset[i] * scale, 2 + (high - 4) * (this.high - pitch[i]) / (this.high - this.low + 1), Math.max(1, (offset[i] - onset[i]) * scale), 1.6);
      }
      brush.globalAlpha = .55;
      brush.fillStyle = this.colour.ink;
      for (const i of wrong) brush.fillRect(onset[i] * scale, 39, 1, 4);
      this.window();
    }
    window() {
      const pen = this.map.getContext("2d"), wide = this.map.clientWidth, scale = wide / Math.max(this.piece.seconds, .001);
      if (!wide || !this.picture) return;
      const left = this.scroll.scrollLeft / this.pps * scale, right = left + (this.width - GUTTER) / this.pps * scale;
      pen.clearRect(0, 0, wide, 44);
      pen.fillStyle = this.colour.back;
      pen.fillRect(0, 0, wide, 44);
      pen.save();
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.drawImage(this.picture, 0, 0);
      pen.restore();
      pen.fillStyle = this.colour.line;
      pen.globalAlpha = .1;
      pen.fillRect(left, 0, right - left, 44);
      pen.globalAlpha = 1;
      pen.strokeStyle = this.colour.line;
      pen.lineWidth = 1.5;
      if (right - left < wide - 2) { pen.beginPath(); pen.roundRect(left + .75, .75, Math.min(right, wide) - left - 1.5, 42.5, 4); pen.stroke(); }
      pen.fillStyle = this.colour.line;
      pen.fillRect(this.at * scale, 0, 1.5, 44);
    }

    /* ---- sound */
    play() { if (playing === this) this.stop(); else this.start(); }
    start() {
      if (playing) playing.stop();
      synth = synth || new Synth();
      synth.context.resume();
      if (this.at >= this.piece.seconds - .05) this.at = 0;
      playing = this;
      this.begun = synth.context.currentTime + .06;
      this.begin = this.at;
      this.queued = first(this.piece.onset, this.at - .02);
      this.timer = setInterval(() => this.feed(), 25);
      this.button("Stop", "M7 6h10v12H7z");
      const frame = () => {
        if (playing !== this) return;
        this.at = clamp(this.now, 0, this.piece.seconds);
        this.follow();
        this.place();
        this.glow();
        this.window();
        if (this.now > this.piece.seconds + .4) { this.stop(); this.at = 0; this.follow(true); this.dirty(); } else requestAnimationFrame(frame);
      };
      this.feed();
      requestAnimationFrame(frame);
    }
    get now() { return this.begin + Math.max(0, synth.context.currentTime - this.begun) * this.speed; }
    feed() {
      const { onset, offset, pitch, velocity } = this.piece, horizon = document.hidden ? 1.5 : HORIZON_S;
      const until = this.now + horizon * this.speed;
      for (; this.queued < onset.length && onset[this.queued] < until; this.queued++) {
        const i = this.queued;
        if (this.heard(this.sounding[i])) synth.note(pitch[i], velocity[i], this.begun + Math.max(0, onset[i] - this.begin) / this.speed, (offset[i] - onset[i]) / this.speed);
      }
    }
    get sounding() { return this.view === "truth" ? this.piece.truth : this.piece.label; }
    stop() {
      if (playing !== this) return;
      playing = null;
      clearInterval(this.timer);
      synth.silence();
      this.button("Play", "M8 5v14l11-7z");
      this.glow();
      this.place();
    }
    button(label, path) {
      const button = this.find(".roll-play");
      button.setAttribute("aria-label", label);
      button.title = label;
      button.querySelector("path").setAttribute("d", path);
    }
    rewind() { this.seek(0, true); }
    seek(at, show) {
      const was = playing === this;
      if (was) this.stop();
      this.at = clamp(at, 0, this.piece.seconds);
      if (show) this.follow(true);
      if (was) this.start();
      this.place();
      this.dirty();
    }
    /* Keep the line in sight: a third from the left while it moves, page by page where motion is not wanted. */
    follow(jump) {
      const x = this.x(this.at), calm = matchMedia("(prefers-reduced-motion: reduce)").matches, third = GUTTER + (this.width - GUTTER) / 3;
      if (jump || calm ? x < GUTTER || x > this.width - 40 : x > third && x < this.width) this.scroll.scrollLeft += x - (calm && !jump ? GUTTER + 20 : third);
      else if (x < GUTTER || x >= this.width) this.scroll.scrollLeft += x - third;
    }
    place() { this.find(".roll-time").textContent = `${clock(this.at)} / ${clock(this.piece.seconds)}`; }

    /* ---- labels and views */
    solo(button) { this.toggle(this.soloed, button); }
    mute(button) { this.toggle(this.muted, button); }
    toggle(set, button) {
      const chip = button.closest(".roll-label"), label = Number(chip.dataset.label);
      if (!set.delete(label)) set.add(label);
      button.setAttribute("aria-pressed", String(set.has(label)));
      for (const each of this.root.querySelectorAll(".roll-label")) each.classList.toggle("roll-quiet", !this.heard(Number(each.dataset.label)));
      if (playing === this) { this.stop(); this.start(); }
      this.overview();
      this.dirty();
    }
    both() { this.show("both"); }
    model() { this.show("model"); }
    truth() { this.show("truth"); }
    show(view) {
      if (!this.piece.truth) return;
      this.view = this.asked = view;
      for (const each of ["both", "model", "truth"]) this.find(`[data-do=${each}]`).setAttribute("aria-pressed", String(each === view));
      this.layout();
    }

    /* ---- notes one by one */
    describe(i) {
      const { pitch, label, probability, truth, onset } = this.piece, called = (each) => (each < 0 ? "no label" : this.classes[each]);
      const sure = label[i] < 0 ? "" : ` ${probability[i]} %`, true_ = truth && truth[i] >= 0 ? (truth[i] === label[i] ? ", right" : `, in truth ${called(truth[i])}`) : "";
      const answer = this.classes.length ? `${called(label[i])}${sure}${true_} · ` : "";
      return `${name(pitch[i])} · ${answer}${clock(onset[i])}${(onset[i] % 1).toFixed(2).slice(1)}`;
    }
    say(text) { this.find(".roll-status").textContent = text; }
    choose(i) {
      this.chosen = i;
      const { onset, offset, pitch, velocity } = this.piece;
      if (playing !== this) {
        synth = synth || new Synth();
        synth.context.resume();
        synth.note(pitch[i], velocity[i], synth.context.currentTime + .02, Math.min(offset[i] - onset[i], 1));
      }
      this.seek(onset[i], true);
      this.say(this.describe(i));
    }
    under(event) {
      const box = this.base.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top - 22;
      const k = clamp(Math.floor(y / (this.panel + this.gap)), 0, this.panels.length - 1);
      const at = (x + this.scroll.scrollLeft - GUTTER) / this.pps, pitch = this.high - Math.floor((y - k * (this.panel + this.gap)) / this.row);
      const { onset, offset } = this.piece, slack = 3 / this.pps;
      let found = -1;
      for (let i = first(onset, at - this.piece.longest - slack); i < onset.length && onset[i] <= at + slack; i++) if (offset[i] + slack >= at && Math.abs(this.piece.pitch[i] - pitch) < (this.row < 5 ? 1.5 : 1)) found = i;
      return { at: x < GUTTER ? -1 : at, x, y: y + 22, note: x < GUTTER ? -1 : found };
    }
    hover(event) {
      const { x, y, note } = this.under(event);
      this.tip.hidden = note < 0;
      if (note < 0) return;
      this.tip.textContent = this.describe(note);
      const wide = this.tip.offsetWidth;
      this.tip.style.transform = `translate(${clamp(x + 12, 4, this.width - wide - 4)}px, ${y > 60 ? y - 34 : y + 18}px)`;
    }
    press(event) {
      const { at, note } = this.under(event);
      if (note >= 0) this.choose(note); else if (at >= 0) { this.chosen = -1; this.seek(at); }
    }
    step(by) {
      const { onset } = this.piece, i = this.chosen >= 0 ? this.chosen + by : first(onset, this.at) - (by < 0 ? 1 : 0);
      if (i >= 0 && i < onset.length) this.choose(i);
    }
    back() { this.mistake(-1); }
    ahead() { this.mistake(1); }
    mistake(by) {
      const wrong = this.piece.wrong, here = this.chosen >= 0 ? this.chosen : first(this.piece.onset, this.at) - (by > 0 ? 1 : 0);
      const next = by > 0 ? wrong.find((i) => i > here) : wrong.findLast((i) => i < here);
      if (next === undefined) this.say(by > 0 ? "No mistake after this." : "No mistake before this."); else this.choose(next);
    }
    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const does = { " ": () => this.play(), ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), Home: () => this.seek(0, true), m: () => this.mistake(1),
        End: () => this.seek(this.piece.seconds, true), "+": () => this.closer(), "=": () => this.closer(), "-": () => this.wider(), Escape: () => this.stop() }[event.key];
      if (does) { event.preventDefault(); does(); }
    }

    /* ---- the same in words */
    table() {
      const list = this.find(".roll-list");
      if (!list.open) return;
      const { onset, offset, pitch, label, truth, probability } = this.piece, start = this.page * ROWS, end = Math.min(start + ROWS, onset.length);
      const make = (tag, text, parent) => { const element = document.createElement(tag); element.textContent = text; parent.append(element); return element; };
      const box = list.querySelector("div"), table = document.createElement("table"), called = (each) => (each < 0 ? "" : this.classes[each]);
      const head = make("tr", "", make("thead", "", table)), body = make("tbody", "", table);
      const columns = this.classes.length ? ["label", "probability", ...(truth ? ["truth"] : [])] : [];
      const answers = (i) => [called(label[i]), label[i] < 0 ? "" : `${probability[i]} %`, ...(truth ? [called(truth[i])] : [])].slice(0, columns.length);
      for (const text of ["note", "seconds", "length", "pitch", ...columns]) make("th", text, head).scope = "col";
      for (let i = start; i < end; i++) {
        const row = make("tr", "", body);
        make("th", String(i + 1), row).scope = "row";
        for (const text of [onset[i].toFixed(2), (offset[i] - onset[i]).toFixed(2), name(pitch[i]), ...answers(i)]) make("td", text, row);
        if (truth && truth[i] >= 0 && truth[i] !== label[i]) row.className = "roll-wrong";
      }
      box.replaceChildren(table);
      const turn = (text, by, allowed) => {
        const button = make("button", text, box);
        button.type = "button";
        button.disabled = !allowed;
        button.onclick = () => { this.page += by; this.table(); };
      };
      turn("‹ Notes before", -1, start > 0);
      turn("Notes after ›", 1, end < onset.length);
      make("span", ` ${start + 1} to ${end} of ${onset.length.toLocaleString("en")}`, box);
    }
  }
  for (const root of document.querySelectorAll(".roll")) new Roll(root);
})();
