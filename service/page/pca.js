// Principal components of a few points in many dimensions, by the eigenvectors of their Gram matrix. For unit vectors
// this is classical multidimensional scaling of their distances too: the two give the same picture.

const SWEEPS_MAX = 60;

/**
 * Points in the plane of greatest variance.
 * vectors: n arrays of one length. Returns {points: [[x, y]], shares: [first, second]}: the part of the variance along
 * each axis, 0 to 1. A sign says nothing in PCA; it is chosen so that the point farthest out along an axis is positive.
 */
export function project(vectors) {
  const n = vectors.length;
  if (n === 0) return { points: [], shares: [0, 0] };
  const gram = centredGram(vectors);
  const total = gram.reduce((sum, row, i) => sum + row[i], 0);
  const { values, columns } = eigenSymmetric(gram);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const axes = [0, 1].map((rank) => axisOf(columns[order[rank]], values[order[rank]], n));
  // Below this, what is left of equal points is rounding.
  const real = total > 1e-9 * n;
  return {
    points: vectors.map((_, i) => axes.map((axis) => (real ? axis[i] : 0))),
    shares: [0, 1].map((rank) => (real ? Math.max(0, values[order[rank]] ?? 0) / total : 0)),
  };
}

/** Inner products of the vectors less their mean: n × n. */
export function centredGram(vectors) {
  const n = vectors.length;
  const mean = vectors[0].map((_, k) => vectors.reduce((sum, vector) => sum + vector[k], 0) / n);
  const centred = vectors.map((vector) => vector.map((value, k) => value - mean[k]));
  return centred.map((a) => centred.map((b) => a.reduce((sum, value, k) => sum + value * b[k], 0)));
}

/** Jacobi's method: every eigenvalue of a symmetric matrix, and its eigenvector of length one. */
export function eigenSymmetric(matrix) {
  const n = matrix.length;
  const a = matrix.map((row) => [...row]);
  const columns = a.map((_, i) => a.map((_, j) => Number(i === j)));
  const scale = Math.max(...a.flat().map(Math.abs), Number.MIN_VALUE);
  for (let sweep = 0; sweep < SWEEPS_MAX; sweep++) {
    let largest = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        largest = Math.max(largest, Math.abs(a[p][q]));
        if (a[p][q] !== 0) rotate(a, columns, p, q);
      }
    }
    if (largest <= 1e-14 * scale) break;
  }
  return { values: a.map((row, i) => row[i]), columns };
}

function rotate(a, columns, p, q) {
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  for (let k = 0; k < a.length; k++) {
    [a[k][p], a[k][q]] = [c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]];
  }
  for (let k = 0; k < a.length; k++) {
    [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
    [columns[p][k], columns[q][k]] = [c * columns[p][k] - s * columns[q][k], s * columns[p][k] + c * columns[q][k]];
  }
}

function axisOf(column, value, n) {
  if (column === undefined || !(value > 0)) return Array(n).fill(0);
  const farthest = column.reduce((best, x) => (Math.abs(x) > Math.abs(best) ? x : best), 0);
  const length = Math.sqrt(value) * Math.sign(farthest);
  return column.map((x) => x * length);
}
