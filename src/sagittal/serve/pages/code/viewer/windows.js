// Windows: which values are black and which are white.

/** Centre and width in HU (CT) or SUV (PT), by key; the words are in text/*.json under `window`. */
const CT = [
  ["soft-tissue", 40, 400],
  ["lung", -600, 1500],
  ["bone", 480, 2500],
  ["brain", 40, 80],
  ["subdural", 75, 215],
  ["mediastinum", 50, 350],
  ["liver", 60, 160],
];
const PT = [["suv-5", 2.5, 5], ["suv-10", 5, 10], ["suv-15", 7.5, 15]];

/**
 * @typedef {{key: string, low: number, high: number}} Preset
 */

/**
 * The windows that fit a modality; of others those that fit the values.
 * @param {string} modality
 * @param {{low: number, high: number, least: number, most: number}} range of the values, see {@link valueRange}
 * @returns {Preset[]} the first is where a reader begins
 */
export function presets(modality, range) {
  const own = [
    { key: "auto", low: range.low, high: range.high },
    { key: "full", low: range.least, high: range.most },
  ];
  const fixed = ({ CT, PT }[modality] ?? []).map(([key, centre, width]) => ({
    key: String(key),
    low: Number(centre) - Number(width) / 2,
    high: Number(centre) + Number(width) / 2,
  }));
  // A CT whose values are not Hounsfield units (a picture of one) begins with its own.
  return modality === "CT" && range.most <= 255 && range.least >= 0 ? own : [...fixed, ...own];
}

/**
 * Which values a volume has: 1st and 99th percentile of what is not air, and the outermost.
 * @param {{data: any, slope: number, intercept: number, coloured: boolean}} volume
 */
export function valueRange(volume) {
  if (volume.coloured) return { low: 0, high: 255, least: 0, most: 255 };
  const step = Math.max(1, Math.floor(volume.data.length / 200000));
  const some = [];
  for (let at = 0; at < volume.data.length; at += step) {
    const value = volume.data[at] * volume.slope + volume.intercept;
    if (Number.isFinite(value)) some.push(value);
  }
  some.sort((a, b) => a - b);
  const least = some[0] ?? 0;
  const most = some.at(-1) ?? 1;
  const inside = some.filter((value) => value > least); // background is often one value
  const chosen = inside.length > 100 ? inside : some;
  const at = (share) => chosen[Math.min(chosen.length - 1, Math.floor(share * chosen.length))] ?? 0;
  const [low, high] = [at(0.01), at(0.99)];
  return { low, high: high > low ? high : low + 1, least, most: most > least ? most : least + 1 };
}
