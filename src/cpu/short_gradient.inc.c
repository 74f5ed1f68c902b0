/* SPDX-License-Identifier: MIT */
/* From scores and dP to P and dS on short sequences, lanes = queries, whatever scores depend on. */

/* Which of LANES queries from v on key k is hidden from: by what the passes found, or by its range alone. */
WORD lane_mask short_hidden(const score_tile *t, const short_ranges *range, int k, int v) {
  if (t->visible) return lanes_equal(lanes_load(t->visible + k * t->width + v), lanes_zero());
  int first = range->first_query[k] - v, last = range->last_query[k] - v;
  return mask_or(mask_first(first < 0 ? 0 : first), mask_not(mask_first(last < 0 ? 0 : last)));
}

/* From scores in t->s and dP in `ds` to P (after dropout) and scale * dS in their place, 0 where hidden; `factor` is
 * scratch. `plain`, a constant: nothing but causal, a window and lengths. */
WORD void short_gradient_tile_as(const score_tile *t, const short_ranges *range, real *ds, real *factor, bool plain) {
  const attend_problem *p = t->problem;
  const attend_slice *s = t->slice;
  const bool dropout = !plain && p->dropout_threshold != 0;
  const lanes scale = lanes_set1((real)p->scale), hidden_score = lanes_set1(-(real)INFINITY);
  if (dropout) {
    for (int k = 0; k < t->keys * t->width; k += LANES) lanes_store(factor + k, lanes_set1(1));
    dropout_pass(t, factor, (real)p->dropout_scale);
  }
  for (int v = 0; v < t->width; v += LANES) {
    lane_mask hidden[SHORT_MAX];
    real d_lse[LANES] = {0};
    for (int l = 0; !plain && s->d_lse && l < LANES && v + l < t->rows; l++)
      d_lse[l] = (real)attend_load(s->d_lse, (v + l) * s->d_lse_row, p->layout[OPERAND_D_LSE].type);
    lanes max = plain ? hidden_score : lanes_set1((real)(s->sink * LOG2_E)), sum = lanes_zero(), delta = lanes_zero();
    for (int k = 0; k < t->keys; k++) {
      hidden[k] = short_hidden(t, range, k, v);
      max = lanes_max(lanes_select(hidden[k], hidden_score, lanes_load(t->s + k * t->width + v)), max);
    }
    max = lanes_select(lanes_equal(max, hidden_score), lanes_zero(), max);
    if (!plain && s->sink != -INFINITY) sum = lanes_exp2(lanes_sub(lanes_set1((real)(s->sink * LOG2_E)), max));
    for (int k = 0; k < t->keys; k++) {
      int at = k * t->width + v;
      lanes power = lanes_select(hidden[k], lanes_zero(), lanes_exp2(lanes_sub(lanes_load(t->s + at), max)));
      lanes dp = lanes_select(hidden[k], lanes_zero(), lanes_load(ds + at));
      if (dropout) dp = lanes_mul(dp, lanes_load(factor + at));
      sum = lanes_add(sum, power);
      delta = lanes_fma(power, dp, delta);
      lanes_store(t->s + at, power);
      lanes_store(ds + at, dp);
    }
    lanes share = lanes_select(lanes_equal(sum, lanes_zero()), lanes_zero(), lanes_div(lanes_set1(1), sum));
    delta = lanes_mul(delta, share);
    if (!plain) delta = lanes_sub(delta, lanes_load(d_lse));
    for (int k = 0; k < t->keys; k++) {
      int at = k * t->width + v;
      lanes probability = lanes_mul(lanes_load(t->s + at), share);
      lanes gradient = lanes_mul(lanes_mul(probability, lanes_sub(lanes_load(ds + at), delta)), scale);
      if (t->softcap_slope) gradient = lanes_mul(gradient, lanes_load(t->softcap_slope + at));
      if (dropout) probability = lanes_mul(probability, lanes_load(factor + at));
      lanes_store(ds + at, lanes_select(hidden[k], lanes_zero(), gradient));
      lanes_store(t->s + at, lanes_select(hidden[k], lanes_zero(), probability)); /* the row's sum may be NaN */
    }
  }
}
static void short_gradient_tile(const score_tile *t, const short_ranges *range, real *ds, real *factor) {
  if (t->visible || t->softcap_slope || t->problem->dropout_threshold || t->slice->d_lse ||
      t->slice->sink != -INFINITY) {
    short_gradient_tile_as(t, range, ds, factor, false);
    return;
  }
  score_tile plain = *t;
  plain.visible = plain.softcap_slope = NULL;
  short_gradient_tile_as(&plain, range, ds, factor, true);
}
