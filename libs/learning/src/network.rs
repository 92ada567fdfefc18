//! A small network of dense layers with rectified units, its gradient, and Adam.
//!
//! Written out instead of taken from a library, for two reasons that were measured or tried. `candle-core` and `candle-nn`
//! 0.11.1 without default features were not built after 265 CPU-seconds, over twice what a cold build here may take for
//! them. And its kernels choose their instructions, and with them the order of sums, by the machine: the same seed would
//! not give the same policy everywhere. Here every sum has one order, so weights are the same bytes on any machine with
//! IEEE 754 arithmetic; the network has a few thousand weights, and loops over rows vectorise as they are.

/// Weights of a network, layer by layer, each layer's weights (input by input) before its biases.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    widths: Vec<usize>,
    weights: Vec<f32>,
}

/// Room for the values inside a network while it is evaluated.
#[derive(Clone, Debug, Default)]
pub struct Room {
    values: Vec<Vec<f32>>,
    slopes: Vec<Vec<f32>>,
}

/// Numbers of weights and biases in a network of these layer widths.
pub fn size(widths: &[usize]) -> usize {
    widths.windows(2).map(|pair| (pair[0] + 1) * pair[1]).sum()
}

impl Network {
    /// A network with seeded weights: uniform within ±√(6 / inputs) (He), biases 0.
    pub fn seeded(widths: &[usize], random: &mut mesh_scenes::random::Random) -> Self {
        let mut weights = Vec::with_capacity(size(widths));
        for pair in widths.windows(2) {
            let bound = (6.0 / pair[0].max(1) as f64).sqrt();
            weights.extend((0..pair[0] * pair[1]).map(|_| random.between(-bound, bound) as f32));
            weights.extend(std::iter::repeat_n(0.0, pair[1]));
        }
        Self { widths: widths.to_vec(), weights }
    }

    /// A network of given weights; `None` unless there are as many as the widths need, one output, and all are finite.
    pub fn of(widths: &[usize], weights: Vec<f32>) -> Option<Self> {
        let fits = widths.len() >= 2 && widths.last() == Some(&1) && weights.len() == size(widths);
        (fits && weights.iter().all(|w| w.is_finite())).then(|| Self { widths: widths.to_vec(), weights })
    }

    /// Layer widths, input first.
    pub fn widths(&self) -> &[usize] {
        &self.widths
    }

    /// All weights and biases.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Takes other weights of the same shape; false, and nothing changes, if they are not.
    pub fn set(&mut self, weights: &[f32]) -> bool {
        let fits = weights.len() == self.weights.len() && weights.iter().all(|w| w.is_finite());
        if fits {
            self.weights.copy_from_slice(weights);
        }
        fits
    }

    /// Its answer to one input of the first width.
    pub fn value(&self, input: &[f32], room: &mut Room) -> f32 {
        room.fit(&self.widths);
        if let Some(first) = room.values.first_mut() {
            first.copy_from_slice(input);
        }
        let mut rest = self.weights.as_slice();
        let layers = self.widths.len() - 1;
        for layer in 0..layers {
            let (inputs, outputs) = (self.widths[layer], self.widths[layer + 1]);
            let (matrix, after) = rest.split_at(inputs * outputs);
            let (biases, after) = after.split_at(outputs);
            rest = after;
            let (before, now) = room.values.split_at_mut(layer + 1);
            let (x, y) = (&before[layer], &mut now[0]);
            y.copy_from_slice(biases);
            for (x, row) in x.iter().zip(matrix.chunks_exact(outputs)) {
                if *x != 0.0 {
                    for (y, w) in y.iter_mut().zip(row) {
                        *y += x * w;
                    }
                }
            }
            if layer + 1 < layers {
                y.iter_mut().for_each(|y| *y = y.max(0.0));
            }
        }
        room.values.last().and_then(|last| last.first()).copied().unwrap_or(0.0)
    }

    /// Adds `slope` times the gradient of the last answer in `room` to `gradient`, which has the weights' shape.
    pub fn add_gradient(&self, slope: f32, room: &mut Room, gradient: &mut [f32]) {
        let layers = self.widths.len() - 1;
        if let Some(last) = room.slopes.last_mut().and_then(|last| last.first_mut()) {
            *last = slope;
        }
        let mut end = self.weights.len();
        for layer in (0..layers).rev() {
            let (inputs, outputs) = (self.widths[layer], self.widths[layer + 1]);
            let begin = end - (inputs + 1) * outputs;
            let matrix = &self.weights[begin..end - outputs];
            let (rows, biases) = gradient[begin..end].split_at_mut(inputs * outputs);
            end = begin;
            let (before, now) = room.slopes.split_at_mut(layer + 1);
            let (back, slopes) = (&mut before[layer], &now[0]);
            for (bias, slope) in biases.iter_mut().zip(slopes) {
                *bias += slope;
            }
            let x = &room.values[layer];
            for (index, row) in rows.chunks_exact_mut(outputs).enumerate() {
                let x = x[index];
                if x != 0.0 {
                    for (g, slope) in row.iter_mut().zip(slopes) {
                        *g += x * slope;
                    }
                }
                if layer > 0 {
                    // A unit that is off passes nothing back.
                    let weights = &matrix[index * outputs..(index + 1) * outputs];
                    let through = weights.iter().zip(slopes).map(|(w, s)| w * s).sum::<f32>();
                    back[index] = if x > 0.0 { through } else { 0.0 };
                }
            }
        }
    }
}

impl Room {
    fn fit(&mut self, widths: &[usize]) {
        if self.values.len() != widths.len() || self.values.iter().zip(widths).any(|(v, w)| v.len() != *w) {
            self.values = widths.iter().map(|w| vec![0.0; *w]).collect();
            self.slopes = self.values.clone();
        }
    }
}

/// Adam (Kingma and Ba 2015) with β₁ 0.9, β₂ 0.999, ε 1e-8.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    rate: f32,
    first: Vec<f32>,
    second: Vec<f32>,
    power: (f32, f32),
}

impl Adam {
    /// For this many weights, with this learning rate.
    pub fn new(size: usize, rate: f32) -> Self {
        Self { rate, first: vec![0.0; size], second: vec![0.0; size], power: (1.0, 1.0) }
    }

    /// One step down the gradient.
    pub fn step(&mut self, network: &mut Network, gradient: &[f32]) {
        const B1: f32 = 0.9;
        const B2: f32 = 0.999;
        self.power = (self.power.0 * B1, self.power.1 * B2);
        let (c1, c2) = (1.0 - self.power.0, 1.0 - self.power.1);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((w, g), (m, v)) in network.weights.iter_mut().zip(gradient).zip(moments) {
            *m = B1 * *m + (1.0 - B1) * g;
            *v = B2 * *v + (1.0 - B2) * g * g;
            *w -= self.rate * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_scenes::random::Random;

    use super::*;

    #[test]
    fn the_gradient_is_what_small_changes_say() {
        let mut random = Random::new(4);
        let network = Network::seeded(&[3, 5, 4, 1], &mut random);
        let input = [0.3f32, -0.8, 0.5];
        let mut room = Room::default();
        network.value(&input, &mut room);
        let mut gradient = vec![0.0; network.weights().len()];
        network.add_gradient(1.0, &mut room, &mut gradient);
        let mut compared = 0;
        for index in 0..gradient.len() {
            let at = |by: f32| {
                let mut weights = network.weights().to_vec();
                weights[index] += by;
                f64::from(Network::of(&[3, 5, 4, 1], weights).unwrap().value(&input, &mut Room::default()))
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[index])).abs() < 2e-3, "{index}: {slope} {}", gradient[index]);
            compared += usize::from(slope.abs() > 1e-3);
        }
        assert!(compared > 10, "{compared} of the slopes are not zero");
    }

    #[test]
    fn it_learns_a_function_that_no_line_fits() {
        let mut random = Random::new(9);
        let mut network = Network::seeded(&[2, 16, 1], &mut random);
        let mut adam = Adam::new(network.weights().len(), 0.01);
        let mut room = Room::default();
        let cases = [([0.0f32, 0.0], 0.0f32), ([0.0, 1.0], 1.0), ([1.0, 0.0], 1.0), ([1.0, 1.0], 0.0)];
        for _ in 0..1_500 {
            let mut gradient = vec![0.0; network.weights().len()];
            for (input, wanted) in &cases {
                let error = network.value(input, &mut room) - wanted;
                network.add_gradient(error, &mut room, &mut gradient);
            }
            adam.step(&mut network, &gradient);
        }
        for (input, wanted) in &cases {
            assert!((network.value(input, &mut room) - wanted).abs() < 0.1);
        }
    }

    #[test]
    fn weights_of_another_shape_or_not_finite_are_not_taken() {
        let mut random = Random::new(1);
        let mut network = Network::seeded(&[2, 3, 1], &mut random);
        let before = network.clone();
        assert_eq!(size(&[2, 3, 1]), 13);
        assert!(Network::of(&[2, 3, 1], vec![0.0; 12]).is_none());
        assert!(Network::of(&[2, 3, 2], vec![0.0; 17]).is_none());
        assert!(Network::of(&[2, 3, 1], vec![f32::NAN; 13]).is_none());
        assert!(!network.set(&[f32::INFINITY; 13]) && !network.set(&[0.0; 12]));
        assert_eq!(network, before);
        assert!(network.set(&[0.5; 13]));
    }
}
