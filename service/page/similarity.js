// Cosines of unit vectors, and rankings by them.

/** The inner product of two vectors of one length; for vectors of length one it is their cosine. */
export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Every vector against every other: a symmetric n × n matrix as an array of rows. */
export function cosines(vectors) {
  return vectors.map((a) => vectors.map((b) => dot(a, b)));
}

/** The smallest and largest value beside the diagonal, which is 1 by definition; [0, 1] where there is none. */
export function offDiagonalRange(matrix) {
  const values = matrix.flatMap((row, i) => row.filter((_, j) => j !== i));
  return values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
}

/**
 * Candidates by falling score, equal ones in the order given.
 * scores: [{index, score}]; returns the same objects in another order.
 */
export function ranked(scores) {
  return [...scores].sort((a, b) => b.score - a.score || a.index - b.index);
}

/** The other texts by falling cosine with text `index` of the matrix. */
export function neighbours(matrix, index) {
  return ranked(matrix[index].map((score, other) => ({ index: other, score })).filter((one) => one.index !== index));
}
