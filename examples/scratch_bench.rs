use std::time::Instant;
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let n: usize = std::env::args().nth(2).map_or(1000, |n| n.parse().unwrap());
    let per: usize = std::env::args().nth(3).map_or(1, |n| n.parse().unwrap());
    let t = Instant::now();
    let j = journal_kb::Journal::open(&dir).unwrap();
    println!("open {:?}", t.elapsed());
    let mut times = Vec::new();
    for i in 0..n {
        let t = Instant::now();
        j.transact(|txn| { for k in 0..per { txn.write(format!("d/{}", i*per+k), vec![7u8; 4096])?; } Ok(()) }).unwrap();
        times.push(t.elapsed());
    }
    times.sort();
    println!("median {:?} p99 {:?} max {:?}", times[n/2], times[n*99/100], times[n-1]);
    let t = Instant::now();
    j.close().unwrap();
    println!("close {:?}", t.elapsed());
    // bare
    std::fs::create_dir_all(format!("{dir}/bare")).unwrap();
    let mut times = Vec::new();
    for i in 0..n.min(300) {
        let t = Instant::now();
        for k in 0..per {
        let tmp = format!("{dir}/bare/.tmp{}", k);
        { use std::io::Write; let mut f = std::fs::File::create(&tmp).unwrap(); f.write_all(&vec![7u8; 4096]).unwrap(); f.sync_all().unwrap(); }
        std::fs::rename(&tmp, format!("{dir}/bare/{}", i*per+k)).unwrap();
        std::fs::File::open(format!("{dir}/bare")).unwrap().sync_all().unwrap();
        }
        times.push(t.elapsed());
    }
    times.sort();
    let n = times.len();
    println!("bare median {:?} p99 {:?}", times[n/2], times[n*99/100]);
}
